package host

import (
	"errors"
	"os"
	"strconv"
	"strings"
)

// Tracking counts what the kernel's table of connections could not take, in a network
// namespace since it was made.
type Tracking struct {
	// Dropped are packets that were dropped for want of room or memory, Early
	// connections that were pushed out for new ones, and NotInserted those that could not
	// be entered, as where two packets of one came at the same time.
	Dropped, Early, NotInserted uint64
}

// trackingPath has a line for each processor, below one of names (ct_cpu_seq_show).
const trackingPath = "/proc/net/stat/nf_conntrack"

// errOddCounters is for a file that is not built as it should be.
var errOddCounters = errors.New("read " + trackingPath + ": it has no columns as expected")

// Tracking reads the counters. Where connections are not tracked, or the kernel does not
// tell, the error is [fs.ErrNotExist].
func (Proc) Tracking() (Tracking, error) {
	text, err := os.ReadFile(trackingPath)
	if err != nil {
		return Tracking{}, err
	}
	return parseTracking(string(text))
}

// parseTracking adds the processors up. Columns are found by their names, for kernels have
// had others; numbers are hexadecimal.
func parseTracking(text string) (t Tracking, err error) {
	head, rows, _ := strings.Cut(text, "\n")
	to := make([]*uint64, 0, 20)
	known := 0
	for _, name := range strings.Fields(head) {
		column := map[string]*uint64{"drop": &t.Dropped, "early_drop": &t.Early, "insert_failed": &t.NotInserted}[name]
		if column != nil {
			known++
		}
		to = append(to, column)
	}
	if known == 0 {
		return Tracking{}, errOddCounters
	}
	for line := range strings.Lines(rows) {
		for i, field := range strings.Fields(line) {
			if i >= len(to) || to[i] == nil {
				continue
			}
			n, err := strconv.ParseUint(field, 16, 64)
			if err != nil {
				return Tracking{}, errOddCounters
			}
			*to[i] += n
		}
	}
	return t, nil
}
