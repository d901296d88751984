"""Bring data to this machine: evaluation sets from the Hub, training sets by rule or crawl."""
