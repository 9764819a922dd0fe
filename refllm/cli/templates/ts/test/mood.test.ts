import { beforeAll, expect, test } from "vitest";
import { answer, type Infer } from "../src/mood";

const url = process.env.REFLLM_URL ?? "http://127.0.0.1:8177";

beforeAll(async () => {
  await fetch(`${url}/readyz`).catch(() => {
    throw new Error(`no server at ${url}: start refllm serve --stand-ins`);
  });
});

// As Spin asks a server for a model.
const infer: Infer = async (model, prompt, options) => {
  const body = JSON.stringify({ model, prompt, options });
  const response = await fetch(`${url}/infer`, { method: "POST", body });
  if (!response.ok) throw new Error(await response.text());
  return response.json();
};

const happy = () =>
  new Request("http://localhost/mood", { method: "POST", body: "I love this song." });

test("a happy text is positive", async () => {
  const response = await answer(happy(), infer);
  expect([response.status, await response.text()]).toEqual([200, "positive"]);
});

test("a model that fails is no reason to fail", async () => {
  const response = await answer(happy(), () => {
    throw new Error("out of memory");
  });
  expect([response.status, await response.text()]).toEqual([503, "try again later"]);
});
