"""Import posts from the exports of networks and from tables: `kinds` reads records, `importer` joins them to posts."""
