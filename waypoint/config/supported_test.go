package config

import "testing"

func TestTable(t *testing.T) {
	if err := supported.Verify(); err != nil {
		t.Error(err)
	}
}
