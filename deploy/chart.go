// Package deploy holds what is put into a cluster: the Helm chart "ambit" with its custom resource definitions. It hands
// out files; it renders nothing and talks to no cluster.
package deploy

import (
	"embed"
	"fmt"
	"io/fs"
)

//go:generate go run ./internal/crdgen chart/ambit/crds

//go:embed all:chart/ambit
var files embed.FS

// CRDFolder is the folder of custom resource definitions in Chart, one a file.
const CRDFolder = "crds"

// Chart returns the chart's files; its root is the folder of Chart.yaml. They are the ones that the release publishes, so
// that `ambit install` and GitOps install the same.
func Chart() fs.FS {
	chart, err := fs.Sub(files, "chart/ambit")
	if err != nil {
		panic(fmt.Sprintf("deploy: the embedded chart has an invalid path: %v", err)) // a constant path
	}
	return chart
}

// CRDs returns the custom resource definitions, each the YAML of one object, in the order of their names: the Gateway
// API's standard channel, the Istio kinds that the control plane reads, and ambit's own.
func CRDs() ([][]byte, error) {
	chart := Chart()
	names, err := fs.Glob(chart, CRDFolder+"/*.yaml")
	if err != nil {
		return nil, fmt.Errorf("list custom resource definitions: %w", err)
	}
	crds := make([][]byte, len(names))
	for i, name := range names {
		if crds[i], err = fs.ReadFile(chart, name); err != nil {
			return nil, fmt.Errorf("read custom resource definition %s: %w", name, err)
		}
	}
	return crds, nil
}
