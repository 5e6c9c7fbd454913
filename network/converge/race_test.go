//go:build race

package converge

const raceEnabled = true
