package directory_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/ambit-mesh/ambit/api/security"
	workloadpb "github.com/ambit-mesh/ambit/api/workload"
)

var update = flag.Bool("update", false, "write goldens anew")

// TestDump: what a config_dump shows of the addresses and policies in testdata/dump.txtar, one JSON object a line.
func TestDump(t *testing.T) {
	const path = "testdata/dump.txtar"
	archive, err := txtar.ParseFile(path)
	if err != nil {
		t.Fatal(err)
	}
	d := newDirectory()
	for i, f := range archive.Files {
		switch f.Name {
		case "addresses":
			for line := range strings.Lines(string(f.Data)) {
				var a workloadpb.Address
				if err := protojson.Unmarshal([]byte(line), &a); err != nil {
					t.Fatalf("%s: %v", line, err)
				}
				if w := a.GetWorkload(); w != nil {
					apply(t, d, w)
				} else {
					apply(t, d, a.GetService())
				}
			}
		case "policies":
			for line := range strings.Lines(string(f.Data)) {
				var a security.Authorization
				if err := protojson.Unmarshal([]byte(line), &a); err != nil {
					t.Fatalf("%s: %v", line, err)
				}
				d.HandleAuthorizations(resources(t, &a), nil)
			}
		case "want":
			var got bytes.Buffer
			enc := json.NewEncoder(&got)
			enc.SetIndent("", "  ")
			if err := enc.Encode(d.Dump()); err != nil {
				t.Fatal(err)
			}
			if *update {
				archive.Files[i].Data = got.Bytes()
				if err := os.WriteFile(path, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if diff := cmp.Diff(string(f.Data), got.String()); diff != "" {
				t.Errorf("dump (-want +got):\n%s", diff)
			}
		}
	}
}
