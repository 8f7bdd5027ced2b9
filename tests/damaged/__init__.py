"""What ``damage.py`` tries: kinds of files, kinds of damage, and a trial of one on the other."""
