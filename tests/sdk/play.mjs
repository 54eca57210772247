// Plays one scenario: node play.mjs NAME. See stage.mjs for how it talks to the test.

import { play } from './stage.mjs';
import basics from './scenarios/basics.mjs';
import fallback from './scenarios/fallback.mjs';
import insecure from './scenarios/insecure.mjs';
import recovery from './scenarios/recovery.mjs';
import tokens from './scenarios/tokens.mjs';

const name = process.argv[2];
const scenario = { ...basics, ...fallback, ...insecure, ...recovery, ...tokens }[name];
if (!scenario) throw new Error(`there is no scenario ${name}`);
await play(scenario);
