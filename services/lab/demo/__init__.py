"""The main job: all of Headwater at work on real purchases, with a storefront that asks all the while."""
