"""Odd inputs, one function each: how people's folders, images and programs really are. `test_odd_inputs.py` runs them all."""
