//! Prints the entry points of a package and the names that each exports, as JSON: `names FOLDER`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use scanner::entries::Entries;
use scanner::graph::Graph;
use scanner::packages::Packages;
use scanner::tree::{Limits, Tree};

fn main() {
    let folder = PathBuf::from(std::env::args_os().nth(1).expect("names FOLDER"));
    // Types may be nested deeply.
    let thread = std::thread::Builder::new().stack_size(256 << 20).spawn(move || print(&folder));
    thread.expect("a thread").join().expect("it ended well");
}

fn print(folder: &std::path::Path) {
    let tree = Tree::open(folder, Limits::default()).expect("a folder");
    let packages = Packages::of(&tree).expect("a package");
    let mut all = BTreeMap::new();
    for package in packages.select(None).expect("there is no name to be unknown") {
        let entries = Entries::of(&tree, package);
        let graph = Graph::of(&tree, &packages, entries.points.iter().map(|point| point.file.as_str()));
        for point in &entries.points {
            let names = graph.names_of(&point.file);
            let kinds: BTreeMap<_, _> = names
                .found
                .iter()
                .map(|(name, found)| (name.clone(), found.kind.map_or("?", scanner::module::Kind::as_str)))
                .collect();
            all.insert(point.subpath.clone(), (point.file.clone(), kinds));
        }
        for (what, why) in entries.skipped.iter().chain(&graph.skipped) {
            eprintln!("skipped {what}: {why}");
        }
    }
    println!("{}", serde_json::to_string(&all).expect("JSON"));
}
