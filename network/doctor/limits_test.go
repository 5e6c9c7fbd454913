package doctor

import (
	"testing"
	"time"
)

// Unhurried lets the look at the sources take as long as it does until the test ends.
func Unhurried(t *testing.T) {
	t.Helper()
	before := lookLimit
	t.Cleanup(func() { lookLimit = before })
	lookLimit = time.Hour
}
