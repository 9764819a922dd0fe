import { infer } from "@spinframework/spin-llm";
import { answer } from "./mood";

addEventListener("fetch", (event: any) => {
  event.respondWith(answer(event.request, infer));
});
