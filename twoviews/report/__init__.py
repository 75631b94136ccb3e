"""What people look at: report.html, its plots, and tables on the terminal."""
