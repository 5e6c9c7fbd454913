//go:build race

package lab

// raceDetector tells whether the tests were built with it; the daemon is then too.
const raceDetector = true
