// Plays one scenario: node play.mjs NAME. See stage.mjs for how it talks to the test.

import { play } from './stage.mjs';
import board from './scenarios/board.mjs';
import signIn from './scenarios/sign-in.mjs';
import strangers from './scenarios/strangers.mjs';

const name = process.argv[2];
const scenario = { ...board, ...signIn, ...strangers }[name];
if (!scenario) throw new Error(`there is no scenario ${name}`);
await play(scenario);
