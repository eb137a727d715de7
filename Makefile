# Commands for people. Each says what it does; none needs another to have run first.
#
# All but `deb` and `lint` need root or sudo, which may ask more than once: they install Debian packages and make network
# namespaces.

SHELL := /bin/sh
# What is compiled is compiled as whoever typed the command; only what runs in the end runs as root.
AS_ROOT := tests/lab/as-root
CARGO_TEST := cargo test --config "target.'cfg(all())'.runner = ['$(CURDIR)/$(AS_ROOT)']" --locked
CACHE := $(or $(KVIP_LAB_CACHE),.lab/cache)
# The upgrade test begins with a lower version, built from this very tree. Packing it takes the other away, so that comes last.
OLD_VERSION := 0.0.9-1

# What is compiled for showing and not for keeping (packaging/deb/build --demo).
DEMO := target/debian-demo

.PHONY: help demo test lab-more lab-long lab lab-down lab-old-api deb lint unit lab-parts demo-parts packages both-debs lab-tool \
	control-plane image demo-image cache

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

demo: demo-parts ## three virtual machines, the tutorial, the holder's death: everything at once (15 minutes from nothing, then 2)
	@$(AS_ROOT) $(DEMO)/lab demo $(DEMO)

test: packages lint unit lab-parts ## lint, unit, golden and property tests, and in the lab what every change must keep (45 minutes from nothing, then 15)
	@echo "== the lab"
	@$(CARGO_TEST) --package kvip-lab -- --test-threads=1

lab-more: lab-parts ## more of the lab's tests: racing allocators, bad input, drains, UDP and SCTP, the lab itself (half an hour)
	@$(CARGO_TEST) --package kvip-lab --features more --test cluster --test ipam --test machines \
		--test operations --test options --test protocols --test trouble -- --test-threads=1

lab-long: lab-parts ## the longest: Service fields, forwarding modes, HAProxy, repairs, an API out of reach, kube-proxy (two hours)
	@tests/lab/controlplane/build $(CACHE)/controlplane --with-kube-proxy
	@$(CARGO_TEST) --package kvip-lab --features long \
		--test services --test modes --test proxy --test repair --test faults --test patience --test kube_proxy -- --test-threads=1 --nocapture

lab: demo-parts ## raises the lab with kvip and the tutorial and leaves it up to play with
	@$(AS_ROOT) $(DEMO)/lab play $(DEMO)

lab-down: ## ends the lab
	@$(AS_ROOT) $(DEMO)/lab down

lab-old-api: packages control-plane ## allocation against an API server without IPAddresses, Kubernetes 1.30 (10 minutes from nothing; not in `test`)
	@tests/lab/controlplane/old/build $(CACHE)/controlplane
	@KVIP_LAB_API_SERVER=$$(tests/lab/controlplane/old/build $(CACHE)/controlplane | tail -n 1) \
		$(CARGO_TEST) --package kvip-lab --features more --test ipam -- --nocapture

deb: ## builds target/debian/kvip_VERSION_ARCH.deb and prints its path last
	@packaging/deb/build

lint: ## rustfmt and clippy, warnings are errors
	@cargo clippy --version >/dev/null 2>&1 && cargo fmt --version >/dev/null 2>&1 || rustup component add clippy rustfmt
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets --all-features -- -D warnings

unit: packages
	@echo "== the program's own tests"
	@$(CARGO_TEST) --package kvip

# What a lab is made of: the packages, the control plane, the nodes' disk. Two at a time, as each waits for the network or
# uses one processor now and then.
lab-parts: packages cache
	@$(MAKE) --no-print-directory -j 2 control-plane image

demo-parts: packages cache
	@CARGO_TERM_PROGRESS_WHEN=never $(MAKE) --no-print-directory -j 2 control-plane demo-image

control-plane:
	@tests/lab/controlplane/build $(CACHE)/controlplane

image: both-debs lab-tool
	@$(AS_ROOT) target/debug/lab image

demo-image:
	@packaging/deb/build --demo
	@$(AS_ROOT) $(DEMO)/lab image

both-debs:
	@packaging/deb/build --deb-version $(OLD_VERSION)
	@packaging/deb/build

packages:
	@tests/lab/image/host-packages

# Of whoever builds the control plane there, before root adds the image.
cache:
	@mkdir -p $(CACHE)

lab-tool:
	@cargo build --locked --package kvip-lab
