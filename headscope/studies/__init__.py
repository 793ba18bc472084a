"""Studies: experiments that anyone can repeat, on what users have as well. Nothing else is decided by them."""
