package converge

// Stats counts what a loop has done since it began.
type Stats struct {
	// Passes compared something with what is wanted; Ops were carried out,
	// Failures were not.
	Passes, Ops, Failures uint64
	// Drift counts the entries that an outside hand changed and that were mended.
	Drift uint64
	// Dumps are how often the kernel was read, and why.
	Dumps Dumps
	// Findings are entries in which an audit found the mirror wrong. It should
	// find none.
	Findings uint64

	// Failing entries cannot be had at the moment or wait for such, Fought are
	// those that an outside hand undoes again and again.
	Failing, Fought int
}

// Dumps counts readings of the kernel by reason.
type Dumps struct {
	// Start is the first, Doubt those after announcements that did not tell
	// all, Surprise those after an op that met what the mirror did not show,
	// Audit the regular ones. Failed counts those that could not be made.
	Start, Doubt, Surprise, Audit, Failed uint64
}

// reason says why the kernel must be read.
type reason uint8

const (
	none reason = iota
	start
	doubt
	surprise
)

func (d *Dumps) count(r reason) {
	switch r {
	case start:
		d.Start++
	case doubt:
		d.Doubt++
	case surprise:
		d.Surprise++
	}
}

// Stats returns a snapshot of the counts.
func (l *Loop) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stats
}
