"""Write a report of runs: one HTML file, with CSV files beside it."""

from sift_mm.cli.html_report import main

if __name__ == '__main__':
    main()
