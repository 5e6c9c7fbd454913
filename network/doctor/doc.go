// Package doctor finds what is wrong with a node and with its paths to others, and
// says what is to be done. A [Check] collects facts, by itself and not from a daemon
// alone, and judges them by a pure function; what it has to say are verdicts.
package doctor
