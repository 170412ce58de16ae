package survey

import (
	"context"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/mesh/meshconfig"
)

// Settings returns the settings of the mesh in a namespace as its control plane takes them, with the root namespace filled in.
// Those that cannot be read are the default ones: what is wrong with them `ambit check` says.
func Settings(ctx context.Context, client kubernetes.Interface, mesh string) meshconfig.Settings {
	settings := meshconfig.Default()
	config, err := client.CoreV1().ConfigMaps(mesh).Get(ctx, api.MeshConfigMap, metav1.GetOptions{})
	if err == nil {
		if parsed, err := meshconfig.Parse([]byte(config.Data[api.MeshConfigKey])); err == nil {
			settings = parsed
		}
	}
	if settings.RootNamespace == "" {
		settings.RootNamespace = mesh
	}
	return settings
}
