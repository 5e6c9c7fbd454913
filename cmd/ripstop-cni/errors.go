package main

import (
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"
)

// Codes of errors, beside those that the specification has names for in
// github.com/containernetworking/cni/pkg/types. Those from 100 on are the
// plugin's own. An error without a code of these is 999: something that the
// kernel or the disk did.
const (
	// codeNotReady: no pod can be added, as the specification has it for STATUS.
	codeNotReady uint = 50
	// codeLimited: further, pods that are there may be cut off.
	codeLimited uint = 51
	// codeOccupied: pods of another subnet or of the other mode are in the way.
	codeOccupied uint = 100
	// codeAttached: the container has the interface already.
	codeAttached uint = 101
	// codeAddress: an address that was asked for cannot be had.
	codeAddress uint = 102
	// codeDiffers: CHECK found something else than ADD made.
	codeDiffers uint = 103
)

// fail makes an error in the specification's form. Details say what to do, or
// what is known beyond the message.
func fail(code uint, details, format string, args ...any) *types.Error {
	return types.NewError(code, fmt.Sprintf(format, args...), details)
}

// undone adds to an error what kept its traces from being taken away, nil for
// nothing.
func undone(err, undo error) error {
	var known *types.Error
	if undo != nil && errors.As(err, &known) {
		return fail(known.Code, known.Details, "%s; and it could not be undone: %v", known.Msg, undo)
	}
	return errors.Join(err, undo)
}

// asNotReady gives an error that keeps pods from being added the code that
// STATUS has for that.
func asNotReady(err error) error {
	var known *types.Error
	if errors.As(err, &known) && known.Code >= 100 {
		return fail(codeNotReady, known.Details, "%s", known.Msg)
	}
	return err
}
