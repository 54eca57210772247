// Compares the entry points and exported names that the scanner finds with those of the TypeScript compiler,
// in the packages that stand beside it in package.json. From this folder:
//
//   npm ci --ignore-scripts
//   cargo build --release -p scanner --example names
//   node names.mjs ../../../target/release/examples/names
//
// Ends with 1 if fewer than 99.9 % of the names are the same. `export =` counts as a name for us alone.

import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import path from "node:path";
import ts from "typescript";

const [scanner] = process.argv.slice(2);
if (!scanner) {
  console.error("usage: node names.mjs PATH-OF-THE-EXAMPLE-names");
  process.exit(2);
}
const options = {
  moduleResolution: ts.ModuleResolutionKind.Bundler,
  module: ts.ModuleKind.ESNext,
  target: ts.ScriptTarget.ESNext,
  allowJs: true,
  noEmit: true,
  skipLibCheck: true,
  types: [],
};
const { dependencies } = JSON.parse(readFileSync(new URL("package.json", import.meta.url), "utf8"));
let same = 0;
let all = 0;
for (const name of Object.keys(dependencies).filter((name) => name !== "typescript")) {
  const folder = path.resolve("node_modules", name);
  const begun = performance.now();
  const found = JSON.parse(execFileSync(scanner, [folder], { maxBuffer: 1 << 28, stdio: ["ignore", "pipe", "pipe"] }));
  const ours = performance.now() - begun;
  const files = new Set(Object.values(found).map(([file]) => path.join(folder, file)));
  const program = ts.createProgram([...files], options);
  const checker = program.getTypeChecker();
  const theirs = performance.now() - begun - ours;

  const differences = [];
  let names = 0;
  for (const [subpath, [file, kinds]] of Object.entries(found)) {
    const specifier = name + subpath.slice(1);
    const { resolvedModule } = ts.resolveModuleName(specifier, path.resolve("from.ts"), options, ts.sys);
    if (resolvedModule?.resolvedFileName !== path.join(folder, file)) {
      differences.push(`${subpath}: ${file}, and for the compiler ${resolvedModule?.resolvedFileName ?? "nothing"}`);
    }
    const source = program.getSourceFile(path.join(folder, file));
    const symbol = source && checker.getSymbolAtLocation(source);
    const expected = new Set(symbol ? checker.getExportsOfModule(symbol).map((it) => it.getName()) : []);
    const actual = new Set(Object.keys(kinds).filter((it) => it !== "export="));
    for (const it of new Set([...expected, ...actual])) {
      names += 1;
      if (expected.has(it) && actual.has(it)) same += 1;
      else differences.push(`${subpath} ${it}: ${actual.has(it) ? "too much" : "missing"}`);
    }
  }
  all += names;
  const entries = Object.keys(found).length;
  console.log(`${name}: ${entries} entry points, ${names} names, ${differences.length} differences`);
  console.log(`  ${ours.toFixed(0)} ms, the compiler ${theirs.toFixed(0)} ms to read the same files`);
  for (const difference of differences.slice(0, 20)) console.log(`  ${difference}`);
}
const percent = (100 * same) / all;
console.log(`${same} of ${all} names are the same: ${percent.toFixed(3)} %`);
process.exitCode = percent >= 99.9 ? 0 : 1;
