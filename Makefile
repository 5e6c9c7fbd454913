# Ripstop's build. All that is needed is Go, and root for demo, test and fuzz:
# they work in network namespaces of their own.

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null)
LDFLAGS := -s -w -X github.com/ripstop-net/ripstop/cmd/internal/settings.version=$(VERSION) -X main.buildVersion=$(VERSION)
COMMANDS := ripstopd ripstop ripstop-cni ripstop-lab
# The linters and benchstat are run by version and are no part of the module.
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
ERRCHECK := github.com/kisielk/errcheck@v1.30.0
# The packager too. Later versions need modules that not every proxy has.
NFPM := github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.43.4
BENCHSTAT := golang.org/x/perf/cmd/benchstat@v0.0.0-20260908200009-22c9c6c9d4da

# make demo IP_FAMILY=ipv4, ipv6 or dual
IP_FAMILY ?= dual
# The race detector wants a C compiler; without one the tests run without it.
RACE := $(if $(shell command -v $$(go env CC) 2>/dev/null),-race)
# How long make fuzz spends on each target.
FUZZTIME ?= 20s

.PHONY: build packages image demo test test-packages test-runtime test-image test-docker test-systemd test-flannel lint bench bench-parts faults walk mutants fuzz clean

# Static binaries: they run in any image and on any distribution.
build:
	@[ -d bin ] || echo "building; the first time takes a few minutes"
	@CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ $(addprefix ./cmd/,$(COMMANDS))

# A .deb and a .rpm, of this machine's architecture or GOARCH's.
PACKAGES ?= bin/packages
PACKAGE_VERSION ?= $(patsubst v%,%,$(shell git describe --tags --match 'v[0-9]*' --always 2>/dev/null | grep '^v' || echo 0.0.0~$$(git rev-parse --short=12 HEAD)))
packages: build
	@mkdir -p bin/completion $(PACKAGES)
	@for shell in bash zsh fish; do GOOS= GOARCH= CGO_ENABLED=0 go run ./cmd/ripstop completion $$shell > bin/completion/ripstop.$$shell || exit 1; done
	@for packager in deb rpm; do \
		ARCH=$$(go env GOARCH) PACKAGE_VERSION='$(PACKAGE_VERSION)' SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) \
		GOOS= GOARCH= go run $(NFPM) package --config dist/nfpm.yaml --packager $$packager --target $(PACKAGES)/ || exit 1; \
	done

# An image FROM scratch, by the docker that is installed.
IMAGE ?= ripstop:latest
image: build
	docker build --pull=false -t $(IMAGE) -f dist/Dockerfile bin

# Three hosts, a store, a daemon on each, and pods that talk. Without a terminal
# nobody can press Ctrl-C, so it ends once it has shown that they do.
demo: build
	@if [ -t 0 ] && [ -t 1 ]; then exec bin/ripstop-lab up --nodes 3 --ip-family $(IP_FAMILY); \
	else exec bin/ripstop-lab up --nodes 3 --ip-family $(IP_FAMILY) --once; fi

# The lab has the longest tests, so it begins.
test:
	$(if $(RACE),,@echo "no C compiler: without the race detector")
	go test $(RACE) -shuffle=on -timeout 40m ./network/lab ./...

# Tests against programs of a distribution: iptables with its legacy variant, nft,
# conntrack, the standard CNI plugins, systemd, strace, rpm and promtool (Debian's packages
# iptables, nftables, conntrack, containernetworking-plugins, systemd, strace, rpm,
# busybox-static and prometheus).
test-packages:
	go test $(RACE) -tags packages -run 'Real|Texts|ConntrackShows' -count=1 -timeout 8m ./cmd/ripstop-cni ./cmd/ripstopd ./dist/packages ./dist/prometheus ./network/firewall ./network/lab

# What is shipped on the real things: containers of containerd's on two hosts; the image,
# built and run by Docker. Both are started by hand in namespaces of the tests (Debian's
# packages containerd, runc, containernetworking-plugins, iptables, busybox-static; docker.io).
test-runtime:
	go test -tags runtime -run '^TestContainerd$$' -v -count=1 -timeout 5m ./dist/trials

test-image:
	go test -tags runtime -run '^TestImage$$' -v -count=1 -timeout 10m ./dist/trials

# Two hosts whose Docker has its bridge on the node's subnet (docker.io, iptables, busybox-static).
test-docker:
	go test -tags runtime -run '^TestDocker$$' -v -count=1 -timeout 5m ./dist/trials

# Three machines with systemd as their first process, set up by the commands of
# Documentation/getting-started.md (Debian's packages systemd-container and debootstrap, and
# a mirror: DEBIAN_MIRROR; TRIAL_ROOT names a root that debootstrap has made already).
test-systemd:
	go test -tags runtime -run '^TestSystemd$$' -v -count=1 -timeout 15m ./dist/trials

# A cluster of the real flanneld is taken over and given back: FLANNELD is its program.
test-flannel:
	FLANNELD=$(FLANNELD) go test -tags flannel -run '^TestRealFlannel$$' -v -count=1 -timeout 5m ./network/lab

# The fault suite alone, with nothing beside it: a table of what was done, after
# what time it had healed, what of that was the kernel's own, and what pings between
# pods lost. And how long a daemon with 10,000 peers takes to answer.
FAULTS_LIMIT ?= 1s
faults:
	RIPSTOP_FAULTS_LIMIT=$(FAULTS_LIMIT) go test -run '^(TestFaults|TestAnswersWithManyPeers|TestRebootIsShort)$$' -v -count=1 -timeout 15m ./network/lab

lint:
	@unformatted=$$(gofmt -l cmd subnet backend network dist); [ -z "$$unformatted" ] || { echo "gofmt: $$unformatted"; exit 1; }
	go vet ./...
	go vet -tags packages,mutants,runtime,flannel ./cmd/ripstop-cni ./cmd/ripstopd ./dist/... ./network/...
	go run $(STATICCHECK) ./...
	go run $(STATICCHECK) -tags packages,mutants,runtime,flannel ./cmd/ripstop-cni ./cmd/ripstopd ./dist/... ./network/firewall ./network/lab
	go run $(ERRCHECK) -ignoretests -exclude .errcheck ./...
	go mod verify
	go mod tidy -diff

# Measures the daemon among up to 60,000 peers beside what the kernel takes alone,
# and the parts by Go benchmarks, and writes Documentation/performance.md. For a
# look: make bench BENCHFLAGS="--short --peers 1000" BENCHDIR=/tmp/bench
# The benchmarks of an earlier run (bin/parts.txt, kept elsewhere) are compared
# with: make bench-parts BASE=old.txt
BENCHDIR ?= Documentation
BENCHTIMES ?= 5
bench: build bench-parts
	bin/ripstop-lab bench --write $(BENCHDIR) --parts bin/parts.stat $(BENCHFLAGS)

bench-parts:
	@mkdir -p bin
	go test -run '^$$' -bench . -benchmem -benchtime 200ms -count $(BENCHTIMES) ./subnet ./subnet/etcd ./backend/... ./network/converge ./network/firewall ./network > bin/parts.txt
	go run $(BENCHSTAT) $(BASE) bin/parts.txt > bin/parts.stat
	@cat bin/parts.stat

# go test fuzzes one target of one package at a time.
fuzz:
	@for package in $$(go list ./...); do \
		for target in $$(go test -list '^Fuzz' $$package | grep '^Fuzz'); do \
			echo "$$package $$target"; \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$package || exit 1; \
		done; \
	done

# The random walk that make test takes a few steps of, for long. A seed that it
# printed replays it: make walk WALKFLAGS=-walk.seed=N. The one with direct routes:
# make walk WALK=TestWalkDirect
WALKTIME ?= 30m
WALK ?= TestWalk
walk:
	go test $(RACE) -run '^$(WALK)$$' -v -count=1 -timeout 0 ./network/lab -walk.steps=1000000 -walk.time=$(WALKTIME) $(WALKFLAGS)

# Daemons that have stopped to do one thing: the walk or the fault suite is to notice
# each of them. One alone: make mutants MUTANT=snapshot-not-read
MUTANT ?= .
mutants:
	go test -tags mutants -run '^TestMutantsAreCaught$$/$(MUTANT)' -v -count=1 -timeout 60m ./network/lab

clean:
	rm -rf bin
	go clean -testcache
