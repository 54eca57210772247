//! The static data of the demo: an invented account, its repositories and what their workflows do.

/// The account that owns the repositories of the demo.
pub const OWNER: &str = "acme";
pub const OWNER_ID: u64 = 9_104_377;
pub const INSTALLATION: u64 = 51_840_226;
pub const APP: u64 = 402_118;
/// Login and id of those who push.
pub const PEOPLE: [(&str, u64); 3] =
    [("octo-ana", 20_331_845), ("octo-ben", 31_790_112), ("octo-chloe", 44_017_590)];

pub struct RepoSpec {
    pub name: &'static str,
    pub id: u64,
    pub private: bool,
    pub language: &'static str,
    pub description: &'static str,
    pub workflows: &'static [WorkflowSpec],
}

pub struct WorkflowSpec {
    pub id: u64,
    pub name: &'static str,
    pub path: &'static str,
    /// Each job with its own steps, between GitHub's first and last.
    pub jobs: &'static [(&'static str, &'static [&'static str])],
}

pub const REPOS: [RepoSpec; 3] = [
    RepoSpec {
        name: "api",
        id: 811_204_331,
        private: true,
        language: "Rust",
        description: "The service behind everything",
        workflows: &[
            WorkflowSpec {
                id: 90_112_001,
                name: "CI",
                path: ".github/workflows/ci.yml",
                jobs: &[
                    ("lint", &["Check out", "Install toolchain", "Format", "Clippy"]),
                    ("test (ubuntu-latest)", &["Check out", "Install toolchain", "Restore cache", "Test"]),
                ],
            },
            WorkflowSpec {
                id: 90_112_002,
                name: "Container image",
                path: ".github/workflows/image.yml",
                jobs: &[("build", &["Check out", "Set up buildx", "Build and push"])],
            },
        ],
    },
    RepoSpec {
        name: "web",
        id: 811_204_502,
        private: false,
        language: "TypeScript",
        description: "The dashboard",
        workflows: &[WorkflowSpec {
            id: 90_114_007,
            name: "CI",
            path: ".github/workflows/ci.yml",
            jobs: &[
                ("types", &["Check out", "Set up Node", "Install", "Type check"]),
                ("unit", &["Check out", "Set up Node", "Install", "Unit tests"]),
                ("browser", &["Check out", "Set up Node", "Install", "Build", "Browser tests"]),
            ],
        }],
    },
    RepoSpec {
        name: "docs",
        id: 811_205_118,
        private: false,
        language: "MDX",
        description: "Guides and reference",
        workflows: &[WorkflowSpec {
            id: 90_119_330,
            name: "Publish",
            path: ".github/workflows/publish.yml",
            jobs: &[
                ("build", &["Check out", "Set up Node", "Install", "Build site", "Check links"]),
                ("deploy", &["Download site", "Deploy"]),
            ],
        }],
    },
];

/// What commits and pull requests are called.
pub const TITLES: [&str; 8] = [
    "Describe the retry policy",
    "Bound the request queue",
    "Return 404 for unknown builds",
    "Cache the summary by ETag",
    "Show the branch in the run list",
    "Drop the unused feature flag",
    "Explain how cursors work",
    "Update dependencies",
];
