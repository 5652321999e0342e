# make help says what there is.
CARGO ?= $(shell command -v cargo || echo $(HOME)/.cargo/bin/cargo)
TARGET = $(or $(CARGO_TARGET_DIR),target)
SUDO = $(if $(filter 0,$(shell id -u)),,sudo)
ARGS ?=
HOST = $(shell rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
# As another user, cargo builds and only the test programs run as root.
RUNNER = $(if $(SUDO),CARGO_TARGET_$(HOST)_RUNNER='sudo -E')

.PHONY: help demo bench test image setup cluster cluster-down test-cluster
.DEFAULT_GOAL := help

help: ## Say what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: setup ## Build, then show the mesh at work (needs root; ARGS=--keep leaves it running, ARGS=--waypoint shows a waypoint)
	$(CARGO) build --release --locked -p ztunnel -p waypoint -p culvert
	$(SUDO) $(TARGET)/release/culvert demo $(ARGS)

# The recording names the commit also when the program has left its working tree.
bench: setup ## Build optimised, then compare with sidecars and with no mesh (needs root; ARGS=--quick takes two minutes)
	CULVERT_COMMIT=$$(git describe --always --dirty --abbrev=12 2>/dev/null) $(CARGO) build --profile dist --locked -p ztunnel -p waypoint -p culvert
	$(SUDO) $(TARGET)/dist/culvert bench $(ARGS)

# The end-to-end tests run the agent's binary; tests of namespaces need root, the build does not.
test: setup ## Build and run all tests (needs root)
	$(CARGO) build --locked -p ztunnel -p waypoint -p culvert
	$(RUNNER) $(CARGO) test --locked --workspace

image: ## Build a static image of the agent, without a Docker daemon (ARGS="--arch arm64 --tag NAME:TAG")
	hack/image.sh $(ARGS)

# docs/cluster-lab.md. The first time builds Kubernetes and Istio, which takes about 20 minutes on two cores.
LAB = $(SUDO) env CARGO_TARGET_DIR=$(abspath $(TARGET)) NODES=$(NODES) IPV6=$(IPV6) tests/cluster/lab
NODES ?= 2
IPV6 ?= 1

cluster: setup ## Start a Kubernetes with Istio's control plane and our agent here (needs root; NODES=1, IPV6= for IPv4 alone)
	RUSTFLAGS="-C target-feature=+crt-static" $(CARGO) build --release --locked --target $(shell uname -m)-unknown-linux-gnu -p ztunnel -p culvert
	$(LAB) up

cluster-down: ## Take it down without a trace
	$(LAB) down

# Whatever the tests say, the cluster goes down, unless KEEP=1.
test-cluster: cluster ## Run the tests of the cluster (needs root; ARGS=name picks some, KEEP=1 leaves it up)
	$(RUNNER) $(CARGO) test --locked -p culvert-tests --test cluster -- --test-threads=1 $(ARGS); \
	result=$$?; [ -n "$(KEEP)" ] || $(LAB) down; exit $$result

setup: ## Install what is missing (Debian)
	@hack/setup.sh
