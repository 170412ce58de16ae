package release

import (
	"bytes"
	"fmt"
	"strings"

	"sigs.k8s.io/yaml"
)

// componentLabel says which part of the mesh an object of the chart belongs to.
const componentLabel = "app.kubernetes.io/component"

// holdBack is a Helm post-renderer with which an upgrade goes part by part, each step a revision that says what is true in
// the cluster: of the parts to keep it takes the objects of the current manifest, of all others the new ones.
type holdBack struct {
	keep    func(component string) bool
	current string
}

// Run implements Helm's postrenderer.PostRenderer.
func (h *holdBack) Run(rendered *bytes.Buffer) (*bytes.Buffer, error) {
	out := &bytes.Buffer{}
	take := func(manifest string, kept bool) error {
		for doc := range documents(manifest) {
			component, err := componentOf(doc)
			if err != nil {
				return err
			}
			if h.keep(component) == kept {
				fmt.Fprintf(out, "---\n%s\n", doc)
			}
		}
		return nil
	}
	if err := take(rendered.String(), false); err != nil {
		return nil, err
	}
	if err := take(h.current, true); err != nil {
		return nil, err
	}
	return out, nil
}

// documents yields the YAML documents of a manifest that hold an object.
func documents(manifest string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for doc := range strings.SplitSeq("\n"+manifest, "\n---") {
			doc = strings.TrimSpace(doc)
			empty := true
			for line := range strings.Lines(doc) {
				if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
					empty = false
					break
				}
			}
			if !empty && !yield(doc) {
				return
			}
		}
	}
}

func componentOf(doc string) (string, error) {
	var object struct {
		Metadata struct{ Labels map[string]string }
	}
	if err := yaml.Unmarshal([]byte(doc), &object); err != nil {
		return "", fmt.Errorf("read a rendered object: %w", err)
	}
	return object.Metadata.Labels[componentLabel], nil
}
