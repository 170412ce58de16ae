package app

import (
	"bytes"
	"context"
	"strings"
	"testing"
)

func TestCommands(t *testing.T) {
	for _, tc := range []struct {
		args   []string
		env    []string
		stdout string // a part of it
		err    string // a part of it; empty: none
	}{
		{args: []string{"version"}, stdout: "ztunnel "},
		{args: []string{"--version"}, stdout: "ztunnel "},
		{args: []string{"help"}, stdout: "usage: ztunnel"},
		{args: []string{"serve"}, err: `unknown command "serve"`},
		{args: []string{"proxy", "envoy"}, err: `unknown arguments ["envoy"]`},
		{args: []string{"proxy", "ztunnel"}, env: []string{"FAKE_CA=true"}, err: "FAKE_CA"},
		{args: nil, env: []string{"CA_ADDRESS=http://elsewhere:1"}, err: "CA_ADDRESS"},
	} {
		t.Run(strings.Join(tc.args, " "), func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			err := Run(context.Background(), tc.args, tc.env, &stdout, &stderr)
			if tc.err == "" && err != nil || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
				t.Errorf("error %v, want %q", err, tc.err)
			}
			if !strings.Contains(stdout.String(), tc.stdout) {
				t.Errorf("stdout %q, want %q in it", stdout.String(), tc.stdout)
			}
		})
	}
}
