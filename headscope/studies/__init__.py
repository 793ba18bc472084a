"""Studies: experiments that anyone can repeat, built on the public functions; each has a script in analyses/."""
