// Builds `dist/`, which is committed: the server embeds it. The same sources give the same bytes.

import { build } from "esbuild";
import { copyFile, mkdir } from "node:fs/promises";

const here = (path) => new URL(path, import.meta.url).pathname;

await mkdir(here("dist"), { recursive: true });
await build({
  absWorkingDir: here("."),
  entryPoints: ["src/main.ts"],
  outfile: "dist/app.js",
  bundle: true,
  format: "esm",
  target: "es2022",
  charset: "utf8",
  minify: true,
  legalComments: "none",
});
await copyFile(here("src/index.html"), here("dist/index.html"));
await copyFile(here("src/style.css"), here("dist/style.css"));
