import { SpinEsbuildPlugin } from "@spinframework/build-tools/plugins/esbuild/index.js";
import { build } from "esbuild";

await build({
  entryPoints: ["src/index.ts"],
  outfile: "build/bundle.js",
  bundle: true,
  format: "esm",
  platform: "node",
  plugins: [await SpinEsbuildPlugin()],
});
