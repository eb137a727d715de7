# Commands for people. Each says what it does; none needs another to have run first.

.PHONY: help deb

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

deb: ## builds target/debian/kvip_VERSION_ARCH.deb and prints its path last
	@packaging/deb/build
