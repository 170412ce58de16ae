package stages

import (
	"context"

	"github.com/ambit-mesh/ambit/cli/command"
	"github.com/ambit-mesh/ambit/cli/kube"
	"github.com/ambit-mesh/ambit/cli/release"
	"github.com/ambit-mesh/ambit/cli/survey"
)

// Installed is the mesh that a command is about, as it finds it.
type Installed struct {
	Cluster *kube.Cluster
	// Namespace is where the parts are, or, if there are none, would be.
	Namespace string
	Parts     []survey.Part
	Releases  *release.Releases
	// Current is the last revision; nil if the parts did not come as a Helm release, or there are none.
	Current *release.Revision
}

// Find connects to the cluster and looks for the mesh that the command line means.
func Find(ctx context.Context, env *command.Env) (*Installed, error) {
	cluster, _, err := env.Connect(ctx)
	if err != nil {
		return nil, err
	}
	m := &Installed{Cluster: cluster}
	if m.Namespace, m.Parts, err = env.FindMesh(ctx, cluster); err != nil {
		return nil, err
	}
	if m.Releases, err = release.Open(cluster, m.Namespace); err != nil {
		return nil, err
	}
	if m.Current, err = m.Releases.Current(); err != nil {
		return nil, err
	}
	return m, nil
}
