#!/bin/sh
# The page tests need Chromium: use the installed one, else install Debian's where that is allowed.
command -v chromium >/dev/null && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing Chromium for the page tests"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null && exit 0
fi
echo "The page tests need Chromium: install the package 'chromium', then run make test again." >&2
exit 1
