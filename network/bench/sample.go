package bench

import (
	"slices"
	"time"
)

// Sample is what several runs of one thing took.
type Sample []time.Duration

// At is the value below which the given part of the sample lies; 0.5 gives the
// median. It is 0 for an empty sample.
func (s Sample) At(part float64) time.Duration {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	return sorted[min(int(part*float64(len(sorted))), len(sorted)-1)]
}

// Median is the value in the middle.
func (s Sample) Median() time.Duration { return s.At(0.5) }

// Spread is how far the lowest and highest lie apart, as a part of the median.
func (s Sample) Spread() float64 {
	if len(s) < 2 || s.Median() == 0 {
		return 0
	}
	return float64(slices.Max(s)-slices.Min(s)) / float64(s.Median())
}
