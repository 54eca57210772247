# The front door; CI calls the same targets. Nothing to install first but Rust, Node 20 and make.

CARGO ?= cargo
# More arguments: make test ARGS='-- webhooks', make run ARGS='--no-worker',
# make bench ARGS='--only fanout', make chaos ARGS='--fault kill'
ARGS ?=
# How long make chaos goes on.
CHAOS_MINUTES ?= 20

.DEFAULT_GOAL := help
.PHONY: help run test check bench counts chaos fmt

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

run: ## build what is stale and serve demo data on http://127.0.0.1:8080
	@$(CARGO) build --release --locked --bin campanile
	@exec $(CARGO) run --quiet --release --locked --bin campanile -- serve --demo $(ARGS)

test: ## install what is missing, then run every test on SQLite, PostgreSQL and Redis
	@tests/run $(ARGS)

check: ## format, clippy and rustdoc, warnings denied
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items --locked

bench: ## measure the set of scenarios next to the floor; the report goes to target/bench
	@$(CARGO) build --release --locked --workspace
	@$(CARGO) run --quiet --release --locked -p loadtest -- set \
		--json target/bench/report.json --html target/bench/report.html $(ARGS)

counts: ## count the instructions of the pure parts, and compare them with those of the last time
	@tests/services --install
	@$(CARGO) bench --locked --quiet --bench counts

chaos: ## check the promise under faults, alone and as a cluster, for CHAOS_MINUTES (20)
	@$(CARGO) build --release --locked --workspace
	@$(CARGO) run --quiet --release --locked -p checker -- \
		--minutes $(CHAOS_MINUTES) --at-once 2 $(ARGS)

fmt: ## format everything
	@$(CARGO) fmt --all
