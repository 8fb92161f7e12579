// A Vulkan layer that asks the driver what its compiler made of every compute pipeline (VK_KHR_pipeline_executable_properties: registers, spills,
// instructions, occupancy) and prints it to stderr, one line a pipeline: `statistics: name = value; ...`. With PIPELINE_ASSEMBLY=FOLDER the
// driver's representations (assembly, mostly) are written there too, a file each. scripts/compilers uses it; any Vulkan program can run under it.
//
//   cc -shared -fPIC -O1 -o libpipeline_statistics.so pipeline_statistics.c
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vulkan/vk_layer.h>
#include <vulkan/vulkan.h>

#define EXPORT __attribute__((visibility("default")))
#define DEVICES 16

static PFN_vkGetInstanceProcAddr instance_proc;
static VkInstance last_instance;
static struct { void *key; PFN_vkGetDeviceProcAddr proc; } devices[DEVICES];
static int device_count;

// Handles that the loader made begin with a pointer that is the same for all objects of a device.
static PFN_vkVoidFunction of(VkDevice device, const char *name) {
    for (int i = 0; i < device_count; i++)
        if (devices[i].key == *(void **)device) return devices[i].proc(device, name);
    abort();
}

static VkResult VKAPI_CALL create_instance(const VkInstanceCreateInfo *info, const VkAllocationCallbacks *alloc, VkInstance *out) {
    VkLayerInstanceCreateInfo *link = (void *)info->pNext;
    while (link->sType != VK_STRUCTURE_TYPE_LOADER_INSTANCE_CREATE_INFO || link->function != VK_LAYER_LINK_INFO) link = (void *)link->pNext;
    instance_proc = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
    link->u.pLayerInfo = link->u.pLayerInfo->pNext;
    VkResult result = ((PFN_vkCreateInstance)instance_proc(NULL, "vkCreateInstance"))(info, alloc, out);
    last_instance = *out;
    return result;
}

static VkResult VKAPI_CALL create_device(VkPhysicalDevice adapter, const VkDeviceCreateInfo *info, const VkAllocationCallbacks *alloc, VkDevice *out) {
    VkLayerDeviceCreateInfo *link = (void *)info->pNext;
    while (link->sType != VK_STRUCTURE_TYPE_LOADER_DEVICE_CREATE_INFO || link->function != VK_LAYER_LINK_INFO) link = (void *)link->pNext;
    PFN_vkGetDeviceProcAddr proc = link->u.pLayerInfo->pfnNextGetDeviceProcAddr;
    PFN_vkGetInstanceProcAddr next = link->u.pLayerInfo->pfnNextGetInstanceProcAddr;
    link->u.pLayerInfo = link->u.pLayerInfo->pNext;
    const char *names[info->enabledExtensionCount + 1];
    memcpy(names, info->ppEnabledExtensionNames, info->enabledExtensionCount * sizeof *names);
    names[info->enabledExtensionCount] = VK_KHR_PIPELINE_EXECUTABLE_PROPERTIES_EXTENSION_NAME;
    VkPhysicalDevicePipelineExecutablePropertiesFeaturesKHR feature = {
        VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PIPELINE_EXECUTABLE_PROPERTIES_FEATURES_KHR, (void *)info->pNext, VK_TRUE};
    if (getenv("PIPELINE_NOT_ROBUST")) {
        for (VkBaseOutStructure *next = (void *)info->pNext; next; next = next->pNext) {
            if (next->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2) ((VkPhysicalDeviceFeatures2 *)next)->features.robustBufferAccess = VK_FALSE;
            if (next->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_ROBUSTNESS_2_FEATURES_EXT)
                ((VkPhysicalDeviceRobustness2FeaturesEXT *)next)->robustBufferAccess2 = VK_FALSE;
        }
        if (info->pEnabledFeatures) ((VkPhysicalDeviceFeatures *)info->pEnabledFeatures)->robustBufferAccess = VK_FALSE;
    }
    VkDeviceCreateInfo more = *info;
    more.pNext = &feature;
    more.enabledExtensionCount++;
    more.ppEnabledExtensionNames = names;
    VkResult result = ((PFN_vkCreateDevice)next(last_instance, "vkCreateDevice"))(adapter, &more, alloc, out);
    if (result == VK_SUCCESS && device_count < DEVICES) {
        devices[device_count].key = *(void **)*out;
        devices[device_count++].proc = proc;
    }
    return result;
}

static void representations(VkDevice device, VkPipelineExecutableInfoKHR *which, const char *folder) {
    static int number;
    PFN_vkGetPipelineExecutableInternalRepresentationsKHR get = (void *)of(device, "vkGetPipelineExecutableInternalRepresentationsKHR");
    VkPipelineExecutableInternalRepresentationKHR ir[16];
    uint32_t count = 16;
    for (uint32_t i = 0; i < count; i++) ir[i] = (VkPipelineExecutableInternalRepresentationKHR){VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_INTERNAL_REPRESENTATION_KHR};
    get(device, which, &count, ir);
    for (uint32_t i = 0; i < count; i++) ir[i].pData = malloc(ir[i].dataSize);
    get(device, which, &count, ir);
    for (uint32_t i = 0; i < count; i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%03d-%u-%.40s.txt", folder, number, i, ir[i].name);
        FILE *file = fopen(path, "w");
        if (file) {
            fwrite(ir[i].pData, 1, ir[i].dataSize - ir[i].isText, file);
            fclose(file);
        }
        free(ir[i].pData);
    }
    number++;
}

static VkResult VKAPI_CALL create_pipelines(VkDevice device, VkPipelineCache cache, uint32_t count, const VkComputePipelineCreateInfo *infos,
                                            const VkAllocationCallbacks *alloc, VkPipeline *out) {
    const char *folder = getenv("PIPELINE_ASSEMBLY");
    VkComputePipelineCreateInfo with[count];
    memcpy(with, infos, sizeof with);
    for (uint32_t i = 0; i < count; i++)
        with[i].flags |= VK_PIPELINE_CREATE_CAPTURE_STATISTICS_BIT_KHR | (folder ? VK_PIPELINE_CREATE_CAPTURE_INTERNAL_REPRESENTATIONS_BIT_KHR : 0);
    // Without a cache: one that holds the pipeline already has no statistics of it.
    (void)cache;
    VkResult result = ((PFN_vkCreateComputePipelines)of(device, "vkCreateComputePipelines"))(device, VK_NULL_HANDLE, count, with, alloc, out);
    if (result != VK_SUCCESS) return result;
    PFN_vkGetPipelineExecutablePropertiesKHR get_parts = (void *)of(device, "vkGetPipelineExecutablePropertiesKHR");
    PFN_vkGetPipelineExecutableStatisticsKHR get = (void *)of(device, "vkGetPipelineExecutableStatisticsKHR");
    for (uint32_t i = 0; i < count; i++) {
        VkPipelineInfoKHR pipeline = {VK_STRUCTURE_TYPE_PIPELINE_INFO_KHR, NULL, out[i]};
        VkPipelineExecutablePropertiesKHR part = {VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_PROPERTIES_KHR};
        uint32_t parts = 1;
        get_parts(device, &pipeline, &parts, &part);
        VkPipelineExecutableInfoKHR which = {VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_INFO_KHR, NULL, out[i], 0};
        VkPipelineExecutableStatisticKHR all[64];
        uint32_t stats = 64;
        for (int k = 0; k < 64; k++) all[k] = (VkPipelineExecutableStatisticKHR){VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_STATISTIC_KHR};
        get(device, &which, &stats, all);
        flockfile(stderr);
        fprintf(stderr, "statistics: Subgroup size = %u", part.subgroupSize);
        for (uint32_t k = 0; k < stats; k++) {
            fprintf(stderr, "; %s = ", all[k].name);
            switch (all[k].format) {
            case VK_PIPELINE_EXECUTABLE_STATISTIC_FORMAT_FLOAT64_KHR: fprintf(stderr, "%g", all[k].value.f64); break;
            case VK_PIPELINE_EXECUTABLE_STATISTIC_FORMAT_BOOL32_KHR: fprintf(stderr, "%u", all[k].value.b32); break;
            default: fprintf(stderr, "%lld", (long long)all[k].value.i64);
            }
        }
        fprintf(stderr, "\n");
        funlockfile(stderr);
        if (folder) representations(device, &which, folder);
    }
    return result;
}

static PFN_vkVoidFunction VKAPI_CALL get_device_proc(VkDevice device, const char *name);
static PFN_vkVoidFunction VKAPI_CALL get_instance_proc(VkInstance instance, const char *name);

static PFN_vkVoidFunction ours(const char *name) {
    if (!strcmp(name, "vkCreateInstance")) return (PFN_vkVoidFunction)create_instance;
    if (!strcmp(name, "vkCreateDevice")) return (PFN_vkVoidFunction)create_device;
    if (!strcmp(name, "vkCreateComputePipelines")) return (PFN_vkVoidFunction)create_pipelines;
    if (!strcmp(name, "vkGetDeviceProcAddr")) return (PFN_vkVoidFunction)get_device_proc;
    if (!strcmp(name, "vkGetInstanceProcAddr")) return (PFN_vkVoidFunction)get_instance_proc;
    return NULL;
}

static PFN_vkVoidFunction VKAPI_CALL get_device_proc(VkDevice device, const char *name) {
    PFN_vkVoidFunction own = ours(name);
    return own ? own : of(device, name);
}

static PFN_vkVoidFunction VKAPI_CALL get_instance_proc(VkInstance instance, const char *name) {
    PFN_vkVoidFunction own = ours(name);
    return own ? own : instance_proc ? instance_proc(instance, name) : NULL;
}

EXPORT VkResult VKAPI_CALL vkNegotiateLoaderLayerInterfaceVersion(VkNegotiateLayerInterface *version) {
    version->loaderLayerInterfaceVersion = 2;
    version->pfnGetInstanceProcAddr = get_instance_proc;
    version->pfnGetDeviceProcAddr = get_device_proc;
    version->pfnGetPhysicalDeviceProcAddr = NULL;
    return VK_SUCCESS;
}
