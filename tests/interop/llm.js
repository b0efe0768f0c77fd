// A language model's API (aimock, OpenAI's wire) whose first answer breaks off, and whose second
// is whole. Prints its URL.

import { LLMock } from "@copilotkit/aimock";

const content = "Whales are large. Whales are old. Whales sing — 🐋.";
const model = new LLMock({ port: 0, chunkSize: 5, latency: 5 });
const question = { userMessage: "whales" };
model.on({ ...question, sequenceIndex: 0 }, { content }, { truncateAfterChunks: 6 });
model.on({ ...question, sequenceIndex: 1 }, { content });
await model.start();
console.log(model.url);
