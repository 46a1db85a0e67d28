"""Demo: a whole deployment on real purchases, with a storefront that sends requests all the while."""
