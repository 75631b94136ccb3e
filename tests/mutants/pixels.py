"""Faults in reading image files and in the features of own images."""

from mutants.mutant import Mutant

PIXELS, FORMATS, WARNINGS = "images/test_pixels.py", "images/test_formats.py", "images/pillow_warnings.py"

MUTANTS = [
    Mutant("transparency is dropped", "images/pixels.py", "if not image.has_transparency_data:", "if True:", PIXELS),
    Mutant("transparent pixels are always white", "images/pixels.py", "(gray, gray, gray))", "(255, 255, 255))", PIXELS),
    Mutant(
        "colours under transparent pixels bleed",
        "images/pixels.py",
        "    image = _on_background(image, BACKGROUNDS[reading.background])\n    if reading.size is not None:\n"
        "        image = image.resize((reading.size, reading.size), Image.Resampling.BILINEAR)\n",
        "    if reading.size is not None:\n        image = image.resize((reading.size, reading.size), Image.Resampling.BILINEAR)\n"
        "    image = _on_background(image, BACKGROUNDS[reading.background])\n",
        "test_edges_do_not_take_the_colour_under_transparent_pixels",
    ),
    Mutant(
        "16-bit images clipped",
        "images/pixels.py",
        'if image.mode in ("F", "I") or image.mode.startswith("I;"):',
        "if False:",
        "test_16_bits_are_scaled_by_257_in_both_byte_orders",
    ),
    Mutant("dark scans are accepted", "images/pixels.py", "if high < limit / DARK:", "if False:", PIXELS),
    Mutant("values out of range are accepted", "images/pixels.py", "if low < 0 or high > limit:", "if False:", PIXELS),
    Mutant("white as zero is ignored", "images/pixels.py", "255 - scaled if inverted else scaled", "scaled", PIXELS),
    Mutant("unsigned values are read as signed", "images/pixels.py", "values = values.view(np.uint32)", "values = values", PIXELS),
    Mutant("upper bytes have no range", "images/pixels.py", 'elif ";16" in raw and', "elif False and", PIXELS),
    Mutant("transparent gray of few bits", "images/pixels.py", "255 // (2 ** int(raw[2]) - 1)", "1", PIXELS),
    Mutant("NaN becomes black", "images/pixels.py", "if not np.isfinite(values).all():", "if False:", PIXELS),
    Mutant(
        "EXIF rotation is ignored",
        "images/pixels.py",
        "ImageOps.exif_transpose(image, in_place=True)",
        "ImageOps.exif_transpose(image)",
        "test_16_bits_are_scaled_exif_rotates_and_the_first_frame_is_used",
    ),
    Mutant("thumbnails of raw photographs are read", "images/formats.py", 'RAW_SUFFIXES = (".dng", ', "RAW_SUFFIXES = (", FORMATS),
    Mutant(
        "only the ending counts", "images/formats.py", "formats=(*by_content, named) if named else by_content", "formats=(named,)", FORMATS
    ),
    Mutant("Pillow's warnings reach the user", WARNINGS, "filters[:0] = self.entries", "filters[:0] = []", FORMATS),
    Mutant("libtiff prints", WARNINGS, '"TIFFSetErrorHandler", ', "", FORMATS),
    Mutant("warnings of other threads are taken", WARNINGS, 'match = "\\0".__eq__', "match = bool", FORMATS),
    Mutant("our filters stay", WARNINGS, "if entry not in self.entries]", "]", FORMATS),
    Mutant(
        "rows are not in the order of names",
        "images/inputs.py",
        "ordered = tuple(sorted(names))",
        "ordered = tuple(names)[::-1]",
        "test_a_folder_has_one_row_for_each_image_in_the_order_of_names",
    ),
    Mutant(
        "bad images keep their names",
        "embedder.py",
        "if i not in notes.bad]",
        "]",
        "test_bad_files_stop_before_a_forward_pass_or_are_left_out_and_listed",
    ),
    Mutant("colours are not normalised", "embedder.py", "(x - mean) / std", "x", "test_gray_and_colour_become_each_other"),
    Mutant(
        "an existing file is overwritten",
        "commands/embed.py",
        "if to.exists() or to.is_symlink():",
        "if False:",
        "test_an_existing_file_is_never_overwritten",
    ),
    Mutant("csv with few digits", "commands/embed.py", "{value:.9g}", "{value:.6g}", "test_a_file_has_names_and_exact_features"),
]
