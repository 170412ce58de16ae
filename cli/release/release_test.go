package release

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

func TestTag(t *testing.T) {
	for version, want := range map[string]string{
		"v0.3.1":                               "v0.3.1",
		"v0.4.0-rc.1":                          "v0.4.0-rc.1",
		"v0.4.0-beta2":                         "v0.4.0-beta2",
		"v0.3.1-4-gabcdef0":                    "dev", // git describe: four commits later
		"v0.3.1-dirty":                         "dev",
		"v0.4.0-rc.1-2-gabc":                   "dev",
		"v0.3.2-0.20261123024117-abcdef012345": "dev", // the go command: a commit without a tag
		"v0.3.2-0.20261123024117-abcdef012345+dirty": "dev",
		"v0.0.0-20261123024117-abcdef012345":         "dev",
		"v0.4.0-rc.1.0.20261123024117-abcdef012345":  "dev",
		"abcdef0": "dev", "dev": "dev", "": "dev",
	} {
		if got := Tag(version); got != want {
			t.Errorf("Tag(%q) = %q, want %q", version, got, want)
		}
	}
}

const manifest = `---
# Source: a comment only

---
# Source: ambit/templates/istiod.yaml
kind: Deployment
metadata:
  name: istiod-lite
  labels: {app.kubernetes.io/component: istiod-lite}
data: VERSION
---
kind: DaemonSet
metadata:
  name: ztunnel
  labels: {app.kubernetes.io/component: ztunnel}
data: |
  --- not a document's end ---
  VERSION
---
kind: ResourceQuota
metadata: {name: quota}
data: VERSION
`

func TestHoldBack(t *testing.T) {
	h := &holdBack{
		keep:    func(component string) bool { return component == "ztunnel" },
		current: strings.ReplaceAll(manifest, "VERSION", "old") + "---\nkind: Old\nmetadata: {name: gone, labels: {app.kubernetes.io/component: cni}}\n",
	}
	out, err := h.Run(bytes.NewBufferString(strings.ReplaceAll(manifest, "VERSION", "new")))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for doc := range documents(out.String()) {
		name := strings.SplitN(doc[strings.Index(doc, "name: ")+6:], "\n", 2)[0]
		version := "new"
		if strings.Contains(doc, "old") {
			version = "old"
		}
		got = append(got, strings.TrimSuffix(name, "}")+" "+version)
	}
	if diff := cmp.Diff([]string{"istiod-lite new", "quota new", "ztunnel old"}, got); diff != "" {
		t.Errorf("held back (-want +got):\n%s", diff)
	}
	if !strings.Contains(out.String(), "  --- not a document's end ---\n  old") {
		t.Errorf("a document was cut at dashes inside a text:\n%s", out)
	}
}

func TestHoldBackBadManifest(t *testing.T) {
	h := &holdBack{keep: func(string) bool { return false }}
	if _, err := h.Run(bytes.NewBufferString("---\nkind: [\n")); err == nil {
		t.Error("a manifest that is no YAML was taken")
	}
}

func TestReadable(t *testing.T) {
	err := readable(errors.New("values don't meet the specifications of the schema(s) in the following chart(s):\nambit:\n- at '/a': wrong\n- at '/b': wrong too\n"))
	if want := "values are not valid: at '/a': wrong; at '/b': wrong too"; err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
	other := errors.New("other")
	if readable(other) != other {
		t.Error("another error was changed")
	}
}

func TestOverlay(t *testing.T) {
	base := map[string]any{"ztunnel": map[string]any{"logLevel": "info", "env": map[string]any{"A": "1"}}, "tag": "x"}
	got := Overlay(base, map[string]any{"ztunnel": map[string]any{"logLevel": "debug"}})
	want := map[string]any{"ztunnel": map[string]any{"logLevel": "debug", "env": map[string]any{"A": "1"}}, "tag": "x"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("overlay (-want +got):\n%s", diff)
	}
	if base["ztunnel"].(map[string]any)["logLevel"] != "info" {
		t.Error("the base was changed")
	}
}

// builds returns, by name, which build the parts' pods say they are of.
func builds(t *testing.T, c *Chart, vals map[string]any) map[string]string {
	t.Helper()
	text, err := c.Render(t.Context(), "mesh", vals)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for doc := range documents(text) {
		var object struct {
			Kind     string
			Metadata struct{ Name string }
			Spec     struct {
				Template struct {
					Metadata struct{ Annotations map[string]string }
				}
			}
		}
		if err := yaml.Unmarshal([]byte(doc), &object); err != nil {
			t.Fatal(err)
		}
		if object.Kind == "DaemonSet" || object.Kind == "Deployment" {
			out[object.Metadata.Name] = object.Spec.Template.Metadata.Annotations[buildAnnotation]
		}
	}
	return out
}

// TestBuild: another build under the same tag changes the pods of every part whose image the chart names; the same one does not.
func TestBuild(t *testing.T) {
	load := func(version string) *Chart {
		c, err := Load(version, false)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	all := func(build string) map[string]string {
		return map[string]string{"ztunnel": build, "istiod-lite": build, "ambit-cni": build}
	}
	helm := load("dev")
	helm.chart.Metadata.Annotations = nil // as Helm reads the chart itself
	helm.chart.Metadata.AppVersion = "v1.2.3"
	own := all("v1.2.3")
	own["ztunnel"] = ""
	for _, tc := range []struct {
		name  string
		chart *Chart
		vals  map[string]any
		want  map[string]string
	}{
		{"release", load("v1.2.3"), nil, all("v1.2.3")},
		{"release by Helm", helm, nil, all("v1.2.3")},
		{"build of a commit", load("v1.2.3-4-gabcdef0"), nil, all("v1.2.3-4-gabcdef0")},
		{"its images under a tag", load("v1.2.3-5-gabcdef1"), map[string]any{"tag": "mine"}, all("v1.2.3-5-gabcdef1")},
		{"an image by name", load("v1.2.3"), map[string]any{"ztunnel": map[string]any{"image": "example.com/z@sha256:0"}}, own},
	} {
		if diff := cmp.Diff(tc.want, builds(t, tc.chart, tc.vals)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.name, diff)
		}
	}
}
