"""The documentation site: generated reference pages, and the build of the site."""
