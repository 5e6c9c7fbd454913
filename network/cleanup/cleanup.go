// Package cleanup takes away what a daemon has made on its host, and nothing
// else.
package cleanup

import (
	"context"
	"errors"
	"fmt"
)

// Remover takes one kind of what is ours away.
type Remover interface {
	// Find looks for it and changes nothing.
	Find(ctx context.Context) (Finding, error)
	// Remove takes away what the last Find found. What is gone by then is no error.
	Remove(ctx context.Context) error
}

// Finding is what there is to remove.
type Finding struct {
	// Ours has a line for each thing, in the order of the removal.
	Ours []string
	// Left has a line for what looks like ours and stays, with the reason.
	Left []string
}

// Find asks all and adds up what they found.
func Find(ctx context.Context, all ...Remover) (Finding, error) {
	var sum Finding
	var errs []error
	for _, r := range all {
		f, err := r.Find(ctx)
		sum.Ours, sum.Left = append(sum.Ours, f.Ours...), append(sum.Left, f.Left...)
		errs = append(errs, err)
	}
	return sum, errors.Join(errs...)
}

// Remove has all take away what they found, in order, and ends at a failure:
// what comes later may be needed to try again.
func Remove(ctx context.Context, all ...Remover) error {
	for _, r := range all {
		if err := r.Remove(ctx); err != nil {
			return fmt.Errorf("remove: %w", err)
		}
	}
	return nil
}
