// Builds the page into ../static (or the folder named as the argument): names carry a digest of their content, so that
// browsers may keep them; what is there from an earlier build is removed. The same sources give the same bytes.
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const out = process.argv[2] ?? join(here, "..", "static");
rmSync(out, { recursive: true, force: true });
mkdirSync(out, { recursive: true });

const result = await build({
  absWorkingDir: here,
  entryPoints: ["src/main.tsx", "src/style.css"],
  outdir: out,
  bundle: true,
  splitting: true,
  format: "esm",
  minify: true,
  target: "es2022",
  jsx: "automatic",
  jsxImportSource: "preact",
  entryNames: "[name]-[hash]",
  chunkNames: "part-[hash]",
  legalComments: "none",
  metafile: true,
});

const built = Object.entries(result.metafile.outputs);
const named = (entry) => built.find(([, one]) => one.entryPoint === entry)[0].split("/").pop();
const icon = readFileSync(join(here, "src", "icon.svg"));
const iconName = `icon-${createHash("sha256").update(icon).digest("hex").slice(0, 8)}.svg`;
writeFileSync(join(out, iconName), icon);

let page = readFileSync(join(here, "src", "index.html"), "utf8");
for (const [mark, name] of [["MAIN", named("src/main.tsx")], ["STYLE", named("src/style.css")], ["ICON", iconName]]) {
  page = page.replace(mark, `/static/${name}`);
}
writeFileSync(join(out, "index.html"), page);

// The licences of what is built in.
const used = new Set(
  built.flatMap(([, one]) => Object.keys(one.inputs)).flatMap((path) => {
    const found = path.match(/^node_modules\/((?:@[^/]+\/)?[^/]+)\//);
    return found ? [found[1]] : [];
  }),
);
const licences = [...used].sort().map((name) => {
  const folder = join(here, "node_modules", name);
  const facts = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
  const file = readdirSync(folder).filter((one) => /^licen[cs]e/i.test(one)).sort()[0];
  return `${name} ${facts.version}: ${facts.license}\n\n${readFileSync(join(folder, file), "utf8").trim()}\n`;
});
writeFileSync(join(out, "licences.txt"), licences.join("\n" + "-".repeat(80) + "\n\n"));

const sizes = readdirSync(out).map((name) => gzipSync(readFileSync(join(out, name)), { level: 9 }).length);
const total = sizes.reduce((sum, size) => sum + size, 0);
console.log(`${sizes.length} files, ${(total / 1024).toFixed(1)} KiB gzipped`);
if (total > 250 * 1024) {
  console.error("expected at most 250 KiB");
  process.exit(1);
}
