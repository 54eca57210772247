# The front door; CI calls the same targets. Nothing to install first but Rust, Node 20 and make.

CARGO ?= cargo
# More arguments: make test ARGS='-- webhooks', make run ARGS='--no-worker',
# make bench ARGS='--only fanout', make chaos ARGS='--fault kill'
ARGS ?=
# How long make chaos goes on.
CHAOS_MINUTES ?= 20

.DEFAULT_GOAL := help
.PHONY: help run test test-all check hooks bench instructions chaos openapi fmt

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

run: ## build what is stale and serve demo data on http://127.0.0.1:8080
	@test -e target/release/campanile || echo "Building the gateway for the first time: some 300 packages" \
		"are downloaded and compiled, which takes several minutes. After that it starts at once." >&2
	@$(CARGO) build --release --locked --bin campanile
	@exec $(CARGO) run --quiet --release --locked --bin campanile -- serve --demo $(ARGS)

test: ## install what is missing, then run every test on SQLite, PostgreSQL and Redis
	@tests/run $(ARGS)

test-all: ## make check and make test, then all that takes long: instructions, chaos, self-test, fuzzing
	@tests/all

check: ## format, workflows, clippy and rustdoc, warnings denied
	$(CARGO) fmt --all --check
	.ci/actionlint
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items --locked

bench: ## measure the suite of scenarios next to the floor; the report goes to target/bench
	@$(CARGO) build --release --locked --workspace
	@$(CARGO) run --quiet --release --locked -p loadtest -- suite \
		--json target/bench/report.json --html target/bench/report.html $(ARGS)

instructions: ## count the instructions of the pure parts, and compare them with those of the last time
	@tests/services --install
	@$(CARGO) bench --locked --quiet --bench instructions

chaos: ## check the promise under faults, alone and as a cluster, for CHAOS_MINUTES (20)
	@$(CARGO) build --release --locked --workspace
	@$(CARGO) run --quiet --release --locked -p checker -- \
		--minutes $(CHAOS_MINUTES) --at-once 2 $(ARGS)

hooks: ## run format and unit tests before each commit (.githooks)
	@git config core.hooksPath .githooks
	@echo "Git runs .githooks/pre-commit before each commit; git config --unset core.hooksPath ends that."

openapi: ## write docs/openapi.json, the description of all routes, from the code
	@UPDATE_OPENAPI=1 $(CARGO) test --workspace --locked --quiet --lib the_committed_document

fmt: ## format everything
	@$(CARGO) fmt --all
