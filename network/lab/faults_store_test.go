package lab

import "testing"

func (s *faultSuite) storeFaults(t *testing.T)  {}
func (s *faultSuite) manyRestarts(t *testing.T) {}
