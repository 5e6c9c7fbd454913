package subnet

import "time"

// Outage is a time in which a store does not answer.
type Outage struct {
	// Since is when it was noticed.
	Since time.Time
	// Reason is what was found out about it, "" as long as that is being done.
	Reason string
	// Failures counts the tries since then.
	Failures int
	// Count is how many there were since the store was opened, this one included.
	Count uint64
}

// Reporter is a Store that tells whether its Watch gets through.
type Reporter interface {
	// Outage returns the one that lasts, if away; else Count alone says something.
	Outage() (o Outage, away bool)
}
