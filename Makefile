# ambit's tasks. `make help` lists them.

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X github.com/ambit-mesh/ambit/api/build.version=$(VERSION)
PROGRAMS := ./cli/cmd/ambit ./ztunnel/cmd/ztunnel ./istiod-lite/cmd/istiod-lite ./waypoint/cmd/waypoint ./cni/cmd/cni-agent ./cni/cmd/ambit-cni
CLUSTER := go -C e2e/cluster run ./cmd/cluster

.DEFAULT_GOAL := help
.PHONY: help
help: ## list the tasks
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20

.PHONY: build
build: ## build the programs into bin/
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ $(PROGRAMS)

.PHONY: cluster-up cluster-down cluster-reboot kubectl images load
cluster-up: ## start a two-node Kubernetes on this machine (root; the first time builds it); FAMILY=dual, ipv4 or ipv6
	@$(CLUSTER) up $(if $(FAMILY),--family $(FAMILY))
cluster-down: ## remove that cluster and whatever an earlier one left
	@$(CLUSTER) down
cluster-reboot: ## cut the power of NODE=node2 and start it again
	@$(CLUSTER) reboot $(NODE)
kubectl: ## run kubectl against that cluster: ARGS="get pods -A"
	@test -e .cache/cluster/state.json || { echo 'no cluster is up: run make cluster-up' >&2; exit 1; }
	@.cache/bin/kubectl --kubeconfig .cache/cluster/kubeconfig $(ARGS)
images: ## build the images (product and test) as OCI archives in .cache/images; VERSION=v0.1.0 builds and tags a release
	@$(CLUSTER) images $(if $(filter file,$(origin VERSION)),,--version $(VERSION))
load: ## put the images, or FILES="a.tar b.tar", on both nodes
	@$(CLUSTER) load $(abspath $(FILES))

.PHONY: conformance
conformance: ## run the Gateway API's conformance suite on the cluster and write its report (root); SUITE="-run-test=MeshBasic"
	@go run ./e2e/conformance/cmd/conformance $(if $(REPORT),--report $(REPORT)) -- $(SUITE)

.PHONY: demo demo-down
demo: ## cluster, mesh and sample application; shows the main job and checks each line (root)
	@go run ./e2e/demo/cmd/demo
demo-down: cluster-down ## remove what the demo left

.PHONY: generate check test soak upgrade-test bench bench-waypoint bench-scale
generate: ## regenerate what is generated
	@scripts/generate
check: ## fast checks: format, vet, linter, house rules, generated files
	@scripts/check
test: ## all tests (root: also namespaces and a cluster of its own), or some LAYERS="unit netns"
	@scripts/test $(LAYERS)
soak: ## what takes longer than `make test` may, or some LAYERS="race churn" of it
	@scripts/test --soak $(LAYERS)
upgrade-test: ## upgrade from the commit FROM=0726702 to this tree and back, under load, on a cluster of its own (root)
	@scripts/upgrade-test $(FROM)
bench: ## measure ztunnel between two pods against bare TCP and PEER=/path/to/ztunnel (root)
	@go run ./e2e/bench/cmd/bench $(if $(PEER),--peer $(abspath $(PEER)))
bench-waypoint: ## measure the waypoint beside a reverse proxy of net/http and Envoy (installed in .cache); as root also the whole way by ztunnels
	@scripts/envoy || echo 'Envoy could not be installed: measured without it' >&2
	@go run ./e2e/bench/cmd/requests $$(test -x .cache/bin/envoy && echo --envoy .cache/bin/envoy)
bench-scale: ## measure the control plane with PODS=100000 in a real API server without nodes
	@go run ./e2e/scale/cmd/scale --pods $(or $(PODS),100000)
