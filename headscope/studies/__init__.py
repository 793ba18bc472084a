"""Studies: experiments that anyone can repeat, on what users have as well; each has a script. They hook nothing."""
