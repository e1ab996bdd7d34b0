// What most files of tests begin with: a server, a browser, and a folder for pictures. Contexts end with their test.

import { mkdir } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before } from "node:test";
import { launchBrowser, Server } from "./server.mjs";

export const shots = process.env.EVERTHREAD_SCREENSHOTS ?? join(tmpdir(), "everthread-console-screenshots");

/** Sets the stage for the tests of a file. `server` and `browser` are there once the tests run. */
export function setStage() {
  const stage = { server: undefined, browser: undefined };
  before(async () => {
    await mkdir(shots, { recursive: true });
    stage.server = await Server.start();
    stage.browser = await launchBrowser();
  });
  after(async () => {
    await stage.browser?.close();
    await stage.server?.stop();
  });
  afterEach(async () => {
    await Promise.all((stage.browser?.contexts() ?? []).map((context) => context.close()));
  });
  return stage;
}
