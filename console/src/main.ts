// Starts the console.

import { App } from "./app.js";
import { askConfig, readConfig } from "./config.js";

async function start(): Promise<void> {
  const config = readConfig() ?? (await askConfig(""));
  const app = new App(config, (reason) => {
    // The next token needs a new client; the page begins anew with it, and its session is in the address.
    void askConfig(reason).then(() => location.reload());
  });
  app.start();
}

void start();
